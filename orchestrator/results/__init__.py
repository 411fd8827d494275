"""What a store holds, collected for the report and compared between runs."""
