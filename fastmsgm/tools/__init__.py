"""Tools around the library: command line, demo, roofline."""
