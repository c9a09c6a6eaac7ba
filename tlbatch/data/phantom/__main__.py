"""``python -m tlbatch.data.phantom``, the old name of `tlbatch.data.synthetic`."""

from tlbatch.data.synthetic.__main__ import main

if __name__ == "__main__":
    main()
