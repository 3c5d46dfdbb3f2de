"""Adapters: few parameters beside a frozen module, or a few of its own (``recsys.llm.trainers.protocols``)."""
