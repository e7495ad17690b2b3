"""GGUF files and llama.cpp's library: used by the method that quantizes with llama.cpp and by its runner."""
