"""A server that clients know, and pages to chat, look inside, rank, and watch training."""
