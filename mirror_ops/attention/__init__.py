"""Control of attention: prompt-to-prompt, mutual self-attention, cross-attention guidance."""
