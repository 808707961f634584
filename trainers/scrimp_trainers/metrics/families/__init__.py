"""Further scores, one file each, which a scoring asks for by their file's name in `also`."""
