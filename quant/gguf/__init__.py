"""GGUF files and llama.cpp's library, for the method that quantizes with it and the runner that runs with it."""
