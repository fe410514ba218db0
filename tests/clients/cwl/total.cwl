cwlVersion: v1.0
class: CommandLineTool
baseCommand: [awk, "{sum += $1} END {print sum}"]
hints:
  DockerRequirement: {dockerPull: "alpine:3.20"}
requirements:
  ResourceRequirement: {coresMin: 1, ramMin: 256, outdirMin: 64, tmpdirMin: 64}
inputs:
  numbers: {type: "File[]", inputBinding: {position: 1}}
stdout: sum.txt
outputs:
  sum: stdout
