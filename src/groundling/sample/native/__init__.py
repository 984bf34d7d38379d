"""The decoding step as a small library in C++, compiled on the user's machine for its processor."""
