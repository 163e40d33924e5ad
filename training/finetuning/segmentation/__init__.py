"""The segmentation task: masks, marks and words asked, what is trained, scores, and its report beside a U-Net."""
