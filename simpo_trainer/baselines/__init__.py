"""What SimPO is compared with: DPO and supervised fine-tuning by trl's trainers, from the same recipes."""
