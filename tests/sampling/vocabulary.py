"""The vocabulary of the model in these tests."""

VOCAB, MASK, EOS = 48, 47, 46
