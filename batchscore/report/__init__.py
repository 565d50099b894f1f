"""What a run has come to, as one HTML page that needs nothing else, and as a picture for a mail."""
