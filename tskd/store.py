"""``python -m tskd.store``: an alias of ``tskd.cache``."""

from tskd.cache import main

if __name__ == "__main__":
    main()
