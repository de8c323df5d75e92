"""The tested package behind the chapters of the book.

One module a concept; the chapter that explains a module is named in the module's docstring.
Everything is in nats, and ``log_var`` is always the logarithm of the variance.

Importing ``vae_book`` alone is cheap; import what you need from its modules:

>>> from vae_book.models import VAE
>>> from vae_book.training import fit
"""

__version__ = "0.1.0"
