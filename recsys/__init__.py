"""Sequential recommenders: parts that combine, ranked honestly, served through FAISS.

The public names stand in ``__init__.pyi`` and load on first use, so ``import recsys`` stays light.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
