"""Text to token ids and back: byte-level BPE, chat layout, streaming."""
