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

CALLS_OPEN, CALLS_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_OPEN, CALL_SEP, CALL_CLOSE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
TOOL_OUTPUT = "<｜tool▁output▁begin｜>"
"""DeepSeek-V3.1's marks around tool calls. In our vocabularies they are spelt in ordinary tokens."""
DSML = "｜DSML｜"
"""The mark in V3.2's tags, such as <｜DSML｜invoke name="f">."""
