"""Where samples go: memory, files and folders; what is finished, resumed and verified."""
