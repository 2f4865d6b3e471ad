"""The policy that `broker init` writes: nothing is allowed, everything is explained."""

POLICY_TEXT = """\
# What this broker releases, and to whom. Whatever is not allowed here is denied; so far, that is everything.
# After a change: restart the broker or send it SIGHUP. A broken file never replaces the policy that is in force.
version = 1

# Who may bring a new volume into the register: "first-use", a guest that a workload below allows the volume;
# or "never", no guest: an operator does it, sealed-local broker volume allocate ID
# Prefer "never" where a guest's policy uses id_pattern: the host chooses the id there, and could name a new, empty volume.
allocate = "first-use"

# How long a guest of the same measurement may take over a formatting that another guest did not finish.
# After that an operator looks: sealed-local broker volume reset ID
format_deadline_seconds = 3600

# The sample TEE proves NOTHING: with true, anyone who reaches this broker can claim to be any guest.
# For development only.
[tee.sample]
allow = false

# Which TDX and SEV-SNP platforms and images are good: [tee.tdx], [tee.snp] and [[image]], see docs/attestation.md.
# `sealed-local broker policy learn` prints an [[image]] from evidence.

# One block for each kind of guest. A guest belongs to it when every list holds its value (or the word "any").
# [[workload]]
# name = "spark"
# tee = ["sample"]                          # names of TEEs
# launch_digests = ["abcde"]                # what was booted; the sample TEE always says "abcde". Others: images = ["NAME"]
# init_data = ["sha384:..."]                # what it was configured with: sealed-local broker init-data FILE
# volumes = ["pvc-*"]                       # volume ids: globs, or "regex:..." that has to match as a whole
# resources = ["default/spark/*"]           # REPOSITORY/TYPE/TAG: a glob for each part, or "regex:..."
"""
