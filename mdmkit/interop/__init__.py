"""Other projects' files: read into our settings and names, and written back."""
