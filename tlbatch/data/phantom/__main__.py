"""``python -m tlbatch.data.phantom``, as before it was `tlbatch.data.synthetic`."""

from tlbatch.data.synthetic.__main__ import main

if __name__ == "__main__":
    main()
