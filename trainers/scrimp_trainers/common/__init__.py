"""What every layer uses: errors, files, seeds, ranks, the device."""
