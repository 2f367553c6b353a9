"""Speed measurements of MAX, interleaved with those of other programs in the same run."""
