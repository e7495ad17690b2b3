"""Publishing: the files and the card of a quantized variant, sent to the Hub in one commit."""
