"""From images to results: predictor, inputs, outputs, videos."""
