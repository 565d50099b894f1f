"""Files in, files out, surviving kills: what is scored into which folder, by which process, and how far it is."""
