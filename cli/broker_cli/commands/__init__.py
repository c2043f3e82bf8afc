"""One file a command; each is named in the group above it and imported when it is called."""
