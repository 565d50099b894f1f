"""Files in, files out, surviving kills: what is scored into which folder, by whom, and how far it is."""
