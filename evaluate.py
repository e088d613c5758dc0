"""Measure models, or draw what they do: python evaluate.py mode=curve ckpt_path=RUN_DIR …"""

from italic.evaluate import main

if __name__ == "__main__":
    main()
