"""What is asked of the answer to each exercise. A spoiler: read after you have tried."""
