"""Tasks: examples with checkable answers, their tokenizer, and the batches made of them.

Only `specjax.tasks.registry` imports seqio (and TensorFlow with it, ten seconds); every other file is NumPy and
the standard library.
"""
