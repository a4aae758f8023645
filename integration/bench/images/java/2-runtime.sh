#!/bin/bash
. "$(dirname "$0")/install.sh"
packages ca-certificates-java openjdk-17-jre-headless
