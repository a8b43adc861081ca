"""What of the data may be shown or leave: values of a column that many rows have."""

MIN_LABEL_COUNT = 10
