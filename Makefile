.PHONY: check test weights weights-extreme weights-refiner weights-video

check:  ## style, format and types
	ruff check
	ruff format --check
	rm -rf build/typing && mkdir -p build/typing/nic
	ln -sfn $(CURDIR)/nic/* $(CURDIR)/bitstream $(CURDIR)/models $(CURDIR)/cli build/typing/nic/
	mypy

test:
	pytest

DATA ?= ../shared/data/train
RUN ?= build/run

weights:  ## retrain the shipped weights from DATA (folders or tars of photographs): seventeen hours on one core
	nic train image --config tiny --data $(DATA) --minutes 95 -o $(RUN)/tiny-rounding
	nic codebook fit $(RUN)/tiny-rounding/last.pt $(RUN)/tiny.safetensors --data $(DATA) --crops 150
	nic train image --config tiny --data $(DATA) --minutes 21 -o $(RUN)/tiny-vq --learning-rate 5e-4 \
	    --start-from $(RUN)/tiny-rounding/last.pt --codebooks $(RUN)/tiny.safetensors
	nic train image --config small --data $(DATA) --minutes 250 --bfloat16 -o $(RUN)/rounding \
	    --start-from $(RUN)/tiny-vq/last.pt
	nic codebook fit $(RUN)/rounding/last.pt $(RUN)/rounding.safetensors --data $(DATA) --crops 200
	nic train image --config small --data $(DATA) --minutes 20 --bfloat16 -o $(RUN)/vq --learning-rate 3e-4 \
	    --start-from $(RUN)/rounding/last.pt --codebooks $(RUN)/rounding.safetensors
	nic codebook fit $(RUN)/vq/last.pt $(RUN)/small.safetensors --data $(DATA) --crops 500
	nic train image --config medium --data $(DATA) --minutes 350 --bfloat16 -o $(RUN)/medium \
	    --start-from $(RUN)/vq/last.pt --codebooks $(RUN)/small.safetensors
	nic train image --config medium --data $(DATA) --minutes 100 --bfloat16 -o $(RUN)/medium-large --batch 3 --crop 384 \
	    --learning-rate 2e-4 --start-from $(RUN)/medium/last.pt --codebooks $(RUN)/small.safetensors
	nic codebook fit $(RUN)/medium-large/last.pt $(RUN)/fidelity.safetensors --data $(DATA) --crops 500 \
	    --note "photographs and graphics, see docs/training-log.md"
	NIC_MODELS=$(RUN) nic train latents --data $(DATA) -o $(RUN)/latents
	nic train synthesis $(RUN)/fidelity.safetensors --latents $(RUN)/latents --minutes 42 -o $(RUN)/synthesis \
	    --bfloat16 --batch 6 --learning-rate 2e-3
	NIC_MODELS=$(RUN) nic train latents --data $(DATA) -o $(RUN)/searched
	nic train synthesis $(RUN)/fidelity.safetensors --latents $(RUN)/searched --minutes 30 -o $(RUN)/behind-filters \
	    --bfloat16 --batch 6 --learning-rate 5e-5
	NIC_MODELS=$(RUN) nic train latents --data $(DATA) -o $(RUN)/searched-again
	nic train synthesis $(RUN)/fidelity.safetensors --latents $(RUN)/searched-again --minutes 44 \
	    -o $(RUN)/behind-filters-again --bfloat16 --batch 6 --learning-rate 4e-5
	mv $(RUN)/fidelity.safetensors models/weights/

PERCEPTUAL ?= ../shared/weights

weights-extreme:  ## train the extreme mode from the small codec of `weights`; backbones in PERCEPTUAL: seven hours
	nic train extreme --data $(DATA) --minutes 180 -o $(RUN)/extreme --perceptual $(PERCEPTUAL) --bfloat16 \
	    --start-from $(RUN)/small.safetensors
	nic train extreme --data $(DATA) --minutes 170 -o $(RUN)/extreme-synthesis --perceptual $(PERCEPTUAL) --bfloat16 \
	    --start-from $(RUN)/extreme/last.pt --synthesis-only --adversary 0.3 --dists 3 --learning-rate 6e-4
	nic train indices $(RUN)/extreme-synthesis/last.pt models/weights/extreme.safetensors --data $(DATA) --minutes 14 \
	    -o $(RUN)/indices --note "photographs and graphics, see docs/training-log.md"
	nic train recovery models/weights/extreme.safetensors --data $(DATA) --minutes 55 -o $(RUN)/recovery

weights-refiner:  ## train the refiner on what the shipped weights make of DATA: 160 minutes
	nic train refine models/weights/refiner.safetensors --data $(DATA) --minutes 160 -o $(RUN)/refiner \
	    --perceptual $(PERCEPTUAL) --bfloat16 --adversary 0.3 --dists 4 \
	    --note "photographs and graphics, see docs/training-log.md"

CLIPS ?= ../shared/data/video/train

weights-video:  ## train the model of videos from the small codec of `weights`: 140 minutes, in one run instead of two
	nic train residuals $(wildcard $(CLIPS)/*) --photos $(DATA) -o $(RUN)/residuals
	nic train image --config video --data $(RUN)/residuals --data $(RUN)/residuals --data $(DATA) --minutes 128 \
	    --bfloat16 -o $(RUN)/video --start-from $(RUN)/vq/last.pt --codebooks $(RUN)/small.safetensors
	nic codebook fit $(RUN)/video/last.pt $(RUN)/video.safetensors --mode video --data $(RUN)/residuals \
	    --data $(RUN)/residuals --data $(DATA) --crops 400 \
	    --note "clips, photographs and graphics, see docs/training-log.md"
	NIC_MODELS=$(RUN) nic train latents $(wildcard $(CLIPS)/*) --data $(DATA) -o $(RUN)/frames --count 704 \
	    --coded-by video
	nic train synthesis $(RUN)/video.safetensors --latents $(RUN)/frames --minutes 24 -o $(RUN)/frames-synthesis \
	    --config video --bfloat16 --batch 6 --learning-rate 2e-3
	mv $(RUN)/video.safetensors models/weights/
