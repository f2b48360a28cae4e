"""What the judge is asked: text files in English and Chinese, and the code that fills them."""
