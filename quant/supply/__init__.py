"""Supply: the locks of the environment, with the hashes of every file that is installed, and the licences of what is."""
