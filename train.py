"""Train an estimator: python train.py model=lattice steps=8 datamodule=photos …"""

from italic.train import main

if __name__ == "__main__":
    main()
