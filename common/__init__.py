"""What MONAI lacks and more than one bundle needs: a room for each kind of thing, and the commands."""
