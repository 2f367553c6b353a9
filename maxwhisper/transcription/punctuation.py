"""Punctuation marks that are joined to words: the defaults of `prepend_punctuations` and `append_punctuations`."""

PREPEND_PUNCTUATIONS = "\"'“¿([{-"
APPEND_PUNCTUATIONS = "\"'.。,，!！?？:：”)]}、"
