"""The special tokens of our tokenizers, with DeepSeek's spellings (V3 and R1 tokenizer files).

The bars are U+FF5C and the low blocks U+2581, so that no keyboard types them. The order is the id.
"""

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

SPECIALS = (BOS, EOS, PAD, USER, ASSISTANT, THINK_OPEN, THINK_CLOSE)
