"""Where an answer comes from: the weight of each ECG sample and of each word of the question."""
