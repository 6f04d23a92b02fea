"""`python -m autoplay_rag`: the `autoplay-rag` command."""

from autoplay_rag.cli import main

if __name__ == "__main__":
    main()
