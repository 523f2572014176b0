"""Baselines for SimPO: DPO and supervised fine-tuning by trl's trainers, from the same recipes."""
