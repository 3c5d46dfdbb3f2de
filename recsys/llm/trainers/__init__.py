"""Training of the language-model side: objectives over sequences, and the parts around them. Experimental: may change.

A sequence is whatever is generated token by token behind a prompt: the codes of the next item behind a history, or a
text. :mod:`recsys.llm.trainers.sequences` is the flat batch that all parts read. A part leaves this name space when it
has a table with paired tests on two data sets, and a user other than its own story.
"""
