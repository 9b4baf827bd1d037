"""``python -m tskd.try``: an alias of ``tskd.chat``."""

from tskd.chat import main

if __name__ == "__main__":
    main()
