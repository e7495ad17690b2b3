"""llama.cpp's library and its file format, GGUF: what both its quantizer and its runner need."""
