"""What can continue a text: llama.cpp and transformers, behind one interface."""
