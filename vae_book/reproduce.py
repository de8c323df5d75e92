"""``python -m vae_book.reproduce NAME``: the command ``reproduce`` of ``python -m vae_book``.

`vae_book.ledger` has the rows, `vae_book.reproduction` what is done.
"""

import sys

from vae_book.__main__ import main

if __name__ == "__main__":
    main(["reproduce", *sys.argv[1:]])
