"""xformers' memory-efficient attention as a backend of mdmkit."""
