"""Moved to `tlbatch.container_image`; this name works for one version."""

from tlbatch.container_image import main

if __name__ == "__main__":
    main()
